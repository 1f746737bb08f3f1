-- Changes the limits of the first account. ARGV 5..: by how much (5, as limited).

local missing = unopened()
if missing then return missing end
if is_repeated then return answer(true) end
for i, quantity in ipairs(LIMITED) do
  if redis.call('HEXISTS', KEYS[5], 'limit_' .. quantity) == 1 then
    redis.call('HINCRBY', KEYS[5], 'limit_' .. quantity, ARGV[4 + i])
    redis.call('HINCRBY', KEYS[5], 'free_' .. quantity, ARGV[4 + i])
  end
end
note_number()
tell()
return answer(true)
