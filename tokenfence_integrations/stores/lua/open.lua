-- Makes an account, or gives it other limits.
-- ARGV 5..: limits (5, 'n' for none), the same as one text ('' for none at all).

--@ begin
--@ numbers
--@ accounts
--@ numbers
--@ answer
--@ charges
local key, given = KEYS[5], ARGV[10]
local had, made = unpack(redis.call('HMGET', key, 'given', 'made'))
local mine = owner .. '-' .. number
if is_repeated then return answer(made == mine) end
if had and (given == '' or given == had) then return answer(false) end
redis.call('HSET', key, 'given', given, 'made', made or mine)
for i = 1, 5 do
  if ARGV[4 + i] == 'n' then
    redis.call('HDEL', key, FIELDS[i])
  else
    redis.call('HSET', key, FIELDS[i], ARGV[4 + i])
  end
end
note_number()
if had then tell() end
return answer(not had)
