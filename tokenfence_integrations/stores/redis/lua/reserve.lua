-- Reserves in all accounts, or in none. Answered without states if it is done.
-- ARGV 5..: id, what is held then, and if that is not the amount: what has to fit, as limits ('' if
-- nothing has to).

--@ begin
--@ numbers
--@ amounts
local id, record, room = ARGV[5], ARGV[6], ARGV[7]
local usd, calls, into, out = match(record, FOUR)
local w_usd, w_calls, w_tokens, w_into, w_out = usd, calls, nil, into, out
if room and room ~= '' then w_usd, w_calls, w_tokens, w_into, w_out = match(room, FIVE) end
local then_reserved = {}
local fits = true
for i = 5, #KEYS do
  local account = redis.call('HMGET', KEYS[i], 'limits', 'spent', 'reserved', 'uncertain')
  local limits, spent, reserved, uncertain = account[1], account[2], account[3], account[4]
  if not limits then return '!' .. (i - 4) end
  local r_usd, r_calls, r_into, r_out = match(reserved, FOUR)
  local limit = match(limits, '^(%S+) n n n n$')
  if limit then -- of dollars only, as most are: nothing else has to be taken apart
    local s_usd, u_usd = match(spent, '^%S+'), match(uncertain, '^%S+')
    fits = fits and (limit == 'n' or is_within(limit, s_usd, r_usd, u_usd, w_usd))
  else
    local l_usd, l_calls, l_tokens, l_into, l_out = match(limits, FIVE)
    local s_usd, s_calls, s_into, s_out = match(spent, FOUR)
    local u_usd, u_calls, u_into, u_out = match(uncertain, FOUR)
    fits = fits
      and (l_usd == 'n' or is_within(l_usd, s_usd, r_usd, u_usd, w_usd))
      and (l_calls == 'n' or is_within(l_calls, s_calls, r_calls, u_calls, w_calls))
      and (l_tokens == 'n'
        or is_within(l_tokens, plus(s_into, s_out), plus(r_into, r_out), plus(u_into, u_out),
          w_tokens or plus(into, out)))
      and (l_into == 'n' or is_within(l_into, s_into, r_into, u_into, w_into))
      and (l_out == 'n' or is_within(l_out, s_out, r_out, u_out, w_out))
  end
  then_reserved[i] = sum_of_parts(r_usd, r_calls, r_into, r_out, usd, calls, into, out)
end
if not fits and room ~= '' then
  if redis.call('HEXISTS', held, id) == 1 then return 1 end
  --@ accounts
  --@ changes
  --@ answer
  --@ leases
  --@ charges
  --@ expire
  expire()
  return answer(false)
end
if not of_seen[3] then
  --@ leases
  renew()
end
if redis.call('HSETNX', held, id, record) == 1 then
  for i = 5, #KEYS do redis.call('HSET', KEYS[i], 'reserved', then_reserved[i]) end
  --@ epoch
end
return 1
