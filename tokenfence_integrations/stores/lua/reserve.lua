-- Reserves in all accounts, or in none.
-- ARGV 5..: id, force, amount (4), needed (5, as limited), what, names.

local id, force, by = ARGV[5], ARGV[6] == '1', amount(7)
if redis.call('HEXISTS', held, id) == 1 then return answer(true) end
local free, fits = {}, true
for i = 5, #KEYS do
  local of = free_in(KEYS[i])
  if not of then return '!' .. (i - 4) end
  free[i] = of
  for j = 1, 5 do
    if of[j + 1] and not covers(of[j + 1], ARGV[10 + j]) then fits = false end
  end
end
if not (fits or force) then
  expire()
  return answer(false)
end
local at = now()
redis.call('ZADD', owners, as_time(at + lease), owner)
redis.call('HSET', held, id,
  cjson.encode({ by[1], by[2], by[3], by[4], as_time(at), ARGV[16], ARGV[17] }))
for i = 5, #KEYS do add(KEYS[i], free[i], 'reserved', by) end
note_epoch()
return answer(true)
