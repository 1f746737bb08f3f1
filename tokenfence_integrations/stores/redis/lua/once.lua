-- Commands that change something each time that they are applied: whether this one was, by its number.
local is_repeated = of_seen[2] and tonumber(of_seen[2]) >= tonumber(number)

local function note_number()
  redis.call('HSET', seen, 'epoch', epoch, 'number', number)
  redis.call('EXPIRE', seen, REMEMBERED)
end
