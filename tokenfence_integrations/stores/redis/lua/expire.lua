-- Charges as uncertain what is held by others whose lease is over; what is idle is free again.
local function expire()
  local time = as_time(now())
  local over = redis.call('ZRANGEBYSCORE', owners, '-inf', time)
  local any = false
  for _, other in ipairs(over) do
    if other ~= owner then
      local theirs = base .. 'held:' .. other
      --@ whole
      local all = redis.call('HGETALL', theirs)
      redis.call('ZREM', owners, other)
      redis.call('DEL', theirs)
      redis.call('HDEL', base .. 'seen:' .. other, 'alive')
      for i = 1, #all, 2 do
        local amount, what, names, is_idle = unpacked(all[i + 1])
        change_all(names, NOTHING, minus(amount), is_idle and NOTHING or amount)
        if not is_idle then charge(other .. '-' .. all[i], amount, time, what, names, names) end
        any = true
      end
    end
  end
  if any then tell() end
end
