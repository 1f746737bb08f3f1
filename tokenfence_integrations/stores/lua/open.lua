-- Makes an account, or gives it other limits.
-- ARGV 5..: limits (5, 'n' for none), the same as one text ('' for none at all).

local account, given = KEYS[5], ARGV[10]
local had = redis.call('HGET', account, 'given')
if is_repeated or (had and (given == '' or given == had)) then return answer(false) end
redis.call('HSET', account, 'given', given)
for i, quantity in ipairs(LIMITED) do
  local limit = ARGV[4 + i]
  if limit == 'n' then
    redis.call('HDEL', account, 'limit_' .. quantity, 'free_' .. quantity)
  else
    redis.call('HSET', account, 'limit_' .. quantity, limit, 'free_' .. quantity, limit)
    local of = quantity == 'tokens' and { 'input', 'output' } or { quantity }
    for _, each in ipairs(of) do
      for _, part in ipairs({ 'spent_', 'reserved_', 'uncertain_' }) do
        local used = redis.call('HGET', account, part .. each)
        if used and used ~= '0' then
          redis.call('HINCRBY', account, 'free_' .. quantity, negated(used))
        end
      end
    end
  end
end
note_number()
if had then tell() end
return answer(not had)
