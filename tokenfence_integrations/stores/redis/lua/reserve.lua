-- Reserves in all accounts, or in none. Answered without states if it is done.
-- ARGV 3..: id, force, what is held then, and if that is not the amount: what has to fit, as limits.

--@ begin
--@ numbers
--@ accounts
local id, record = ARGV[3], ARGV[5]
local usd, calls, into, out = four(record)
local w_usd, w_calls, w_tokens, w_into, w_out = usd, calls, nil, into, out
if ARGV[6] then w_usd, w_calls, w_tokens, w_into, w_out = five(ARGV[6]) end
local accounts, missing = accounts_of_command()
if not accounts then return missing end
local fits = true
for _, account in ipairs(accounts) do
  local limit, l_calls, l_tokens, l_into, l_out = five(account[LIMITS])
  local s_usd, s_calls, s_into, s_out = four(account[SPENT])
  local r_usd, r_calls, r_into, r_out = four(account[RESERVED])
  local u_usd, u_calls, u_into, u_out = four(account[UNCERTAIN])
  fits = fits
    and (limit == 'n' or is_within(limit, s_usd, r_usd, u_usd, w_usd))
    and (l_calls == 'n' or is_within(l_calls, s_calls, r_calls, u_calls, w_calls))
    and (l_tokens == 'n'
      or is_within(l_tokens, plus(s_into, s_out), plus(r_into, r_out), plus(u_into, u_out),
        w_tokens or plus(into, out)))
    and (l_into == 'n' or is_within(l_into, s_into, r_into, u_into, w_into))
    and (l_out == 'n' or is_within(l_out, s_out, r_out, u_out, w_out))
  account.reserved = plus(r_usd, usd) .. ' ' .. plus(r_calls, calls)
    .. ' ' .. plus(r_into, into) .. ' ' .. plus(r_out, out)
end
if not fits and ARGV[4] ~= '1' then
  if redis.call('HEXISTS', held, id) == 1 then return '1' end
  --@ amounts
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
  for i, account in ipairs(accounts) do
    redis.call('HSET', KEYS[i + 4], 'reserved', account.reserved)
  end
  note_epoch()
end
return '1'
