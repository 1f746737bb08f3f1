-- Replaces the limits of the first account. ARGV 5..: limits (5, 'n' for none).

--@ begin
--@ numbers
--@ accounts
--@ answer
--@ charges
local accounts, missing = accounts_of_command()
if not accounts then return missing end
if not is_repeated then
  for i = 1, 5 do
    if ARGV[4 + i] == 'n' then
      accounts[1][i] = false
      redis.call('HDEL', KEYS[5], FIELDS[i])
    else
      accounts[1][i] = ARGV[4 + i]
      redis.call('HSET', KEYS[5], FIELDS[i], ARGV[4 + i])
    end
  end
  note_number()
  tell()
end
return answer(true, accounts)
