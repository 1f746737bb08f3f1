-- Replaces the limits of the first account. ARGV 3: limits.

--@ begin
--@ numbers
--@ accounts
--@ answer
--@ charges
local accounts, missing = accounts_of_command()
if not accounts then return missing end
if not is_repeated then
  accounts[1][LIMITS] = ARGV[3]
  redis.call('HSET', KEYS[5], 'limits', ARGV[3])
  note_number()
  tell()
end
return answer(true, accounts)
