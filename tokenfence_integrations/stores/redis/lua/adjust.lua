-- Changes the limits of the first account. ARGV 5: by how much, as limits.

--@ begin
--@ once
--@ numbers
--@ amounts
--@ accounts
--@ answer
--@ charges
local accounts, missing = accounts_of_command()
if not accounts then return missing end
if not is_repeated then
  local limits, by = { match(accounts[1][LIMITS], FIVE) }, { match(ARGV[5], FIVE) }
  for i = 1, 5 do
    if limits[i] ~= 'n' then limits[i] = plus(limits[i], by[i]) end
  end
  accounts[1][LIMITS] = table.concat(limits, ' ')
  redis.call('HSET', KEYS[5], 'limits', accounts[1][LIMITS])
  note_number()
  tell()
end
return answer(true, accounts)
