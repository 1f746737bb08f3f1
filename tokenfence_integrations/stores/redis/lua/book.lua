-- Adds to what is spent. ARGV 3: spent.

--@ begin
--@ numbers
--@ accounts
--@ amounts
--@ answer
local accounts, missing = accounts_of_command()
if not accounts then return missing end
if not is_repeated then
  for i, account in ipairs(accounts) do change(KEYS[i + 4], account, ARGV[3]) end
  note_number()
end
return answer(true, accounts)
