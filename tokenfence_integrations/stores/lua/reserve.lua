-- Reserves in all accounts, or in none. Answered without states if it is done.
-- ARGV 5..: id, force, amount (4), what is kept of it, and if that is not the amount: what has to
-- fit (5, as limited).

--@ begin
--@ numbers
--@ accounts
local id, by = ARGV[5], { ARGV[7], ARGV[8], ARGV[9], ARGV[10] }
local usd, calls, tokens, into, out
if ARGV[12] then
  usd, calls, tokens, into, out = ARGV[12], ARGV[13], ARGV[14], ARGV[15], ARGV[16]
else
  usd, calls, tokens, into, out = by[1], by[2], plus(by[3], by[4]), by[3], by[4]
end
local accounts, missing = accounts_of_command()
if not accounts then return missing end
local fits = true
for _, a in ipairs(accounts) do
  fits = fits
    and (not a[1] or is_within(a[1], a[6], a[10], a[14], usd))
    and (not a[2] or is_within(a[2], a[7], a[11], a[15], calls))
    and (not a[3]
      or is_within(a[3], plus(a[8], a[9]), plus(a[12], a[13]), plus(a[16], a[17]), tokens))
    and (not a[4] or is_within(a[4], a[8], a[12], a[16], into))
    and (not a[5] or is_within(a[5], a[9], a[13], a[17], out))
end
if not fits and ARGV[6] ~= '1' then
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
if redis.call('HSETNX', held, id, ARGV[11]) == 1 then
  for i, account in ipairs(accounts) do change(KEYS[i + 4], account, nil, by) end
  note_epoch()
end
return '1'
