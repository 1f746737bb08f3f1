-- Forgets what is spent and uncertain; answered with the states before. ARGV 5: names.

--@ begin
--@ numbers
--@ accounts
--@ answer
--@ charges
--@ forget
local accounts, missing = accounts_of_command()
if not accounts then return missing end
if is_repeated then
  return redis.call('GET', reply_key) or answer(true, accounts)
end
local before = answer(true, accounts)
local gone = {}
for i, name in ipairs(cjson.decode(ARGV[5])) do
  redis.call('HDEL', KEYS[4 + i],
    'spent_usd', 'spent_calls', 'spent_input', 'spent_output',
    'uncertain_usd', 'uncertain_calls', 'uncertain_input', 'uncertain_output')
  gone[name] = true
end
forget_charges(gone)
tell()
return note_reply(before)
