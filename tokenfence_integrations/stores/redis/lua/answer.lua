-- Answers.

local function answer(done, accounts)
  local lines = { done and '1' or '0' }
  for i = 5, #KEYS do
    local account = accounts and accounts[i - 4] or account_of(KEYS[i])
    lines[i - 3] = account and table.concat(account, ' ', LIMITS, UNCERTAIN) or ''
  end
  return table.concat(lines, '\n')
end

local function note_number()
  redis.call('HSET', seen, 'epoch', epoch, 'number', number)
  redis.call('EXPIRE', seen, REMEMBERED)
end

-- The answer to a command that cannot be given again from what is there, should it be sent twice.
local reply_key = string.sub(owners, 1, -7) .. 'reply:' .. owner .. '-' .. number

local function note_reply(reply)
  note_number()
  redis.call('SET', reply_key, reply, 'EX', REMEMBERED)
  return reply
end
