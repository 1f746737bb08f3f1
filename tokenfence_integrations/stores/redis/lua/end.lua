-- Replaces a reservation by what was spent and what is uncertain.
-- ARGV 5..: id, spent, uncertain, names.

--@ begin
--@ once
--@ numbers
--@ amounts
--@ accounts
--@ changes
--@ answer
--@ leases
--@ charges
if is_repeated then return answer(true) end
local id, spent, uncertain, names = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local accounts, what, rest = {}, nil, nil
local record = redis.call('HGET', held, id)
if record then
  redis.call('HDEL', held, id)
  local reserved
  reserved, rest = parted(record)
  local by = minus(reserved)
  for i = 5, #KEYS do
    local account = account_of(KEYS[i])
    if account then change(KEYS[i], account, spent, by, uncertain) end
    accounts[i - 4] = account
  end
else
  local name = owner .. '-' .. id
  record = redis.call('HGET', charges, name)
  if not record then
    -- Should its reservation come after it, its epoch is over.
    --@ epoch
    return answer(false)
  end
  --@ whole
  -- Its lease was over, and somebody has charged it as uncertain: now the truth is known.
  redis.call('HDEL', charges, name)
  local r = cjson.decode(record)
  change_all(r[5], NOTHING, NOTHING, minus(r[1]))
  change_all(names, spent, NOTHING, uncertain)
  what = r[3]
end
if uncertain ~= NOTHING then
  what = what or cjson.decode(rest)[1]
  -- Not under the name of one whose truth may still come.
  charge(owner .. '-' .. id .. '-' .. number, uncertain, as_time(now()), what, names, names)
end
note_number()
tell(KEYS[5])
return answer(true, accounts)
