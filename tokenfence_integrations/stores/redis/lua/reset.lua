-- Forgets what is spent and uncertain; answered with the states before. ARGV 5: names.

--@ begin
--@ once
--@ replies
--@ numbers
--@ amounts
--@ accounts
--@ answer
--@ charges
--@ forget
local accounts, missing = accounts_of_command()
if not accounts then return missing end
if is_repeated then
  return redis.call('GET', reply_key) or answer(true, accounts)
end
--@ whole
local before = answer(true, accounts)
local gone = {}
for i, name in ipairs(cjson.decode(ARGV[5])) do
  redis.call('HSET', KEYS[4 + i], 'spent', NOTHING, 'uncertain', NOTHING)
  gone[name] = true
end
forget_charges(gone)
tell()
return note_reply(before)
