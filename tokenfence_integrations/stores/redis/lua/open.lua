-- Makes an account, or gives it other limits.
-- ARGV 5..: limits, the same again ('' for none at all).

--@ begin
--@ once
--@ numbers
--@ amounts
--@ accounts
--@ answer
--@ charges
local key, limits, given = KEYS[5], ARGV[5], ARGV[6]
local had, made = unpack(redis.call('HMGET', key, 'given', 'made'))
local mine = owner .. '-' .. number
if is_repeated then return answer(made == mine) end
if had and (given == '' or given == had) then return answer(false) end
redis.call('HSET', key, 'given', given, 'made', made or mine, 'limits', limits)
if not had then
  redis.call('HSET', key, 'spent', NOTHING, 'reserved', NOTHING, 'uncertain', NOTHING)
end
note_number()
if had then tell() end
return answer(not had)
