-- Charges as uncertain what is held by others whose lease is over; what is idle is free again.
local function expire()
  local time = as_time(now())
  local over = redis.call('ZRANGEBYSCORE', owners, '-inf', time)
  local any = false
  for _, other in ipairs(over) do
    if other ~= owner then
      local theirs = base .. 'held:' .. other
      local all = redis.call('HGETALL', theirs)
      redis.call('ZREM', owners, other)
      redis.call('DEL', theirs)
      redis.call('HDEL', base .. 'seen:' .. other, 'alive')
      for i = 1, #all, 2 do
        local r = cjson.decode(all[i + 1])
        local is_idle = r[7]
        change_all(r[6], nil, minus(r), not is_idle and r or nil)
        if not is_idle then charge(other .. '-' .. all[i], r, time, r[5], r[6], r[6]) end
        any = true
      end
    end
  end
  if any then tell() end
end
