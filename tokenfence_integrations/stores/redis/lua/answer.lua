-- Answers with the states of the accounts; those that are not given are looked up.
local function answer(done, accounts)
  local lines = { done and '1' or '0' }
  for i = 5, #KEYS do
    local account = accounts and accounts[i - 4] or account_of(KEYS[i])
    lines[i - 3] = account and table.concat(account, ' ') or ''
  end
  return table.concat(lines, '\n')
end
