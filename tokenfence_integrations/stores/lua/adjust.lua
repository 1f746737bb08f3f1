-- Changes the limits of the first account. ARGV 5..: by how much (5, as limited).

--@ begin
--@ numbers
--@ accounts
--@ answer
--@ charges
local accounts, missing = accounts_of_command()
if not accounts then return missing end
if not is_repeated then
  local account = accounts[1]
  for i = 1, 5 do
    if account[i] then
      account[i] = plus(account[i], ARGV[4 + i])
      redis.call('HSET', KEYS[5], FIELDS[i], account[i])
    end
  end
  note_number()
  tell()
end
return answer(true, accounts)
