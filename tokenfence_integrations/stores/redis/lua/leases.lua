-- Time and leases.

local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function as_time(seconds)
  return string.format('%.6f', seconds)
end

local function renew()
  redis.call('ZADD', owners, as_time(now() + lease), owner)
  redis.call('HSET', seen, 'epoch', epoch, 'alive', '1')
  redis.call('EXPIRE', seen, REMEMBERED)
end
