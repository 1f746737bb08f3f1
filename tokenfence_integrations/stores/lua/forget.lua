-- Charges of these accounts (by name) are theirs no more.
local function forget_charges(gone)
  local all = redis.call('HGETALL', charges)
  for i = 1, #all, 2 do
    local r = cjson.decode(all[i + 1])
    local left, fewer = {}, false
    for _, name in ipairs(cjson.decode(r[8])) do
      if gone[name] then fewer = true else left[#left + 1] = name end
    end
    if #left == 0 then
      redis.call('HDEL', charges, all[i])
    elseif fewer then
      charge(all[i], r, r[5], r[6], r[7], cjson.encode(left))
    end
  end
end
