-- Reports the states.

--@ begin
--@ numbers
--@ amounts
--@ accounts
--@ changes
--@ answer
--@ leases
--@ charges
--@ expire
local accounts, missing = accounts_of_command()
if not accounts then return missing end
expire()
return answer(true)
