-- Adds to what is spent. ARGV 5..: spent (4).

--@ begin
--@ numbers
--@ accounts
--@ amounts
--@ answer
local accounts, missing = accounts_of_command()
if not accounts then return missing end
if not is_repeated then
  local spent = amount(5)
  for i, account in ipairs(accounts) do change(KEYS[i + 4], account, spent) end
  note_number()
end
return answer(true, accounts)
