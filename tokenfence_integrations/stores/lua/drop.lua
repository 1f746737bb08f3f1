-- Forgets an account in which nothing is reserved. ARGV 5: its name.

if is_repeated or unopened() then return '0' end
local reserved = redis.call('HMGET', KEYS[5],
  'reserved_usd', 'reserved_calls', 'reserved_input', 'reserved_output')
for i = 1, 4 do
  if reserved[i] and reserved[i] ~= '0' then return '0' end
end
redis.call('DEL', KEYS[5])
forget_charges({ [ARGV[5]] = true })
note_number()
return '1'
