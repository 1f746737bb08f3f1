-- Charges of these accounts (by name) are theirs no more.
local function forget_charges(gone)
  local all = redis.call('HGETALL', charges)
  for i = 1, #all, 2 do
    local amount, at, what, names, charged = unpack(cjson.decode(all[i + 1]))
    local left, fewer = {}, false
    for _, name in ipairs(cjson.decode(charged)) do
      if gone[name] then fewer = true else left[#left + 1] = name end
    end
    if #left == 0 then
      redis.call('HDEL', charges, all[i])
    elseif fewer then
      charge(all[i], amount, at, what, names, cjson.encode(left))
    end
  end
end
