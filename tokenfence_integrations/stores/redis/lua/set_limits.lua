-- Replaces the limits of the first account. ARGV 5: limits.

--@ begin
--@ once
--@ accounts
--@ answer
--@ charges
local accounts, missing = accounts_of_command()
if not accounts then return missing end
if not is_repeated then
  accounts[1][LIMITS] = ARGV[5]
  redis.call('HSET', KEYS[5], 'limits', ARGV[5])
  note_number()
  tell()
end
return answer(true, accounts)
