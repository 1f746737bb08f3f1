-- Replaces a reservation by what was spent and what is uncertain.
-- ARGV 5..: id, spent (4), uncertain (4), names.

--@ begin
--@ numbers
--@ accounts
--@ amounts
--@ answer
--@ leases
--@ charges
if is_repeated then return answer(true) end
local id, spent, uncertain, names = ARGV[5], amount(6), amount(10), ARGV[14]
local name = owner .. '-' .. id
local what
local record = redis.call('HGET', held, id)
if record then
  redis.call('HDEL', held, id)
  local r = cjson.decode(record)
  local by = minus(r)
  for i = 5, #KEYS do
    local account = account_of(KEYS[i])
    if account then change(KEYS[i], account, spent, by, uncertain) end
  end
  what = r[5]
else
  record = redis.call('HGET', charges, name)
  if not record then
    -- Should its reservation come after it, its epoch is over.
    note_epoch()
    return answer(false)
  end
  -- Its lease was over, and somebody has charged it as uncertain: now the truth is known.
  redis.call('HDEL', charges, name)
  local r = cjson.decode(record)
  change_all(r[8], nil, nil, minus(r))
  change_all(names, spent, nil, uncertain)
  what = r[6]
end
if not is_nothing(uncertain) then
  -- Not under the name of one whose truth may still come.
  charge(name .. '-' .. number, uncertain, as_time(now()), what, names, names)
end
note_number()
tell()
return answer(true)
