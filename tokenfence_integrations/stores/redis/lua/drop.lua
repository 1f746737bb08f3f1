-- Forgets an account in which nothing is reserved. ARGV 5: its name.

--@ begin
--@ once
--@ numbers
--@ amounts
--@ accounts
--@ charges
--@ forget
local account = account_of(KEYS[5])
if is_repeated then return account and '0' or '1' end
if not account or account[RESERVED] ~= NOTHING then return '0' end
redis.call('DEL', KEYS[5])
forget_charges({ [ARGV[5]] = true })
note_number()
return '1'
