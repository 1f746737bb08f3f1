-- Replaces a reservation by what was spent and what is uncertain.
-- ARGV 5..: id, spent (4), uncertain (4), names.

if is_repeated then return answer(true) end
local id, spent, uncertain = ARGV[5], amount(6), amount(10)
local name = owner .. '-' .. id
local record = redis.call('HGET', held, id)
local r
if record then
  redis.call('HDEL', held, id)
  r = cjson.decode(record)
  add_to_all(path(), 'reserved', r, true)
else
  record = redis.call('HGET', charges, name)
  if not record then
    -- Should its reservation come after it, its epoch is over.
    note_epoch()
    return answer(false)
  end
  -- Its lease was over, and somebody has charged it as uncertain: now the truth is known.
  redis.call('HDEL', charges, name)
  r = cjson.decode(record)
  add_to_all(keys_of(r[8]), 'uncertain', r, true)
end
add_to_all(path(), 'spent', spent)
if not is_nothing(uncertain) then
  add_to_all(path(), 'uncertain', uncertain)
  charge(name, uncertain, r[5], r[6], ARGV[14], ARGV[14])
end
note_number()
tell()
return answer(true)
