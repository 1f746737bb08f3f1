-- Adds to what is spent. ARGV 5: spent.

--@ begin
--@ once
--@ numbers
--@ amounts
--@ accounts
--@ changes
--@ answer
local accounts, missing = accounts_of_command()
if not accounts then return missing end
if not is_repeated then
  for i, account in ipairs(accounts) do
    change(KEYS[i + 4], account, ARGV[5], NOTHING, NOTHING)
  end
  note_number()
end
return answer(true, accounts)
