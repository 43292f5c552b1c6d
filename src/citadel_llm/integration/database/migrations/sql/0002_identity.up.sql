-- Who may do what -----------------------------------------------------------------------------------------------------

-- `site`: declared in the site's secrets file, and kept as it says; `api`: made by somebody.
alter table llm.users
  add column origin text not null default 'api' check (origin in ('site', 'api'));

-- A key may be given less than its user has: none means as much.
alter table llm.api_keys
  add column origin text not null default 'api' check (origin in ('site', 'api')),
  add column models text[] check (cardinality(models) <= 256),
  add column permissions text[] check (cardinality(permissions) <= 256),
  add column created_by uuid references llm.users (id) on delete set null;

-- A bound in each minute, or at once. `subject` is the user's or the key's id, or the model's name; `*` for everyone.
create table llm.limits (
  scope text not null check (scope in ('user', 'key', 'model', 'everyone')),
  subject text not null check (length(subject) between 1 and 128),
  requests_per_minute bigint check (requests_per_minute >= 0),
  tokens_per_minute bigint check (tokens_per_minute >= 0),
  concurrent_requests integer check (concurrent_requests >= 0),
  updated_at timestamptz not null default now(),
  primary key (scope, subject),
  check (num_nonnulls(requests_per_minute, tokens_per_minute, concurrent_requests) > 0)
);

-- Rises with every change of who may do what: whoever holds a copy sees in one row whether it is still true.
create table llm.identity_version (
  one boolean primary key default true check (one),
  version bigint not null
);
insert into llm.identity_version (version) values (1);

create function llm.identity_changed() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  update llm.identity_version set version = version + 1;
  return null;
end
$$;

create trigger identity_changed after insert or delete or update of
  name, password_hash, disabled_at, origin on llm.users
  for each statement execute function llm.identity_changed();
create trigger identity_changed after insert or delete or update of
  user_id, name, digest, models, permissions, expires_at, revoked_at, replaced_by on llm.api_keys
  for each statement execute function llm.identity_changed();
create trigger identity_changed after insert or delete or update on llm.roles
  for each statement execute function llm.identity_changed();
create trigger identity_changed after insert or delete or update on llm.grants
  for each statement execute function llm.identity_changed();
create trigger identity_changed after insert or delete or update on llm.user_roles
  for each statement execute function llm.identity_changed();
create trigger identity_changed after insert or delete or update on llm.limits
  for each statement execute function llm.identity_changed();
create trigger identity_changed after insert or delete or update on llm.budgets
  for each statement execute function llm.identity_changed();

-- Conversations -------------------------------------------------------------------------------------------------------

-- An item is a message, or a call of a function, its output, what a model thought: `content` is all of it. As `json` it
-- is kept as it was written; nothing here looks into it, and `jsonb` would refuse some of what JSON allows. `items` and
-- `bytes` are sums, kept with each change, so that what is too much is known without reading it.
alter table llm.sessions
  add column next_position integer not null default 0 check (next_position >= 0),
  add column items integer not null default 0 check (items >= 0),
  add column bytes bigint not null default 0 check (bytes >= 0);
alter table llm.messages
  alter column role drop not null,
  alter column content type json using cast(content as json),
  add column type text not null default 'message' check (length(type) between 1 and 64),
  add column bytes integer not null default 0 check (bytes >= 0);
-- An item's id may be its engine's, and is looked for in its conversation alone.
drop index llm.messages_by_id;
create unique index messages_by_id on llm.messages (session_id, id);

-- An answer of /v1/responses that was kept. `input` is what this request added, not what went before it: that is in
-- the answer `previous_id`, or in the items of the conversation before `session_position`. `body` has no output.
create table llm.responses (
  id text primary key check (length(id) between 1 and 128),
  user_id uuid not null references llm.users (id) on delete cascade,
  session_id text references llm.sessions (id) on delete set null,
  session_position integer check (session_position >= 0),
  previous_id text,
  model text not null,
  input json not null,
  output json not null,
  body json not null,
  items integer not null check (items >= 0),
  bytes integer not null check (bytes >= 0),
  request_id text,
  created_at timestamptz not null default now(),
  expires_at timestamptz not null
);
create index responses_by_user on llm.responses (user_id, created_at desc);
create index responses_by_session on llm.responses (session_id) where session_id is not null;
create index responses_by_expiry on llm.responses (expires_at);

-- What was done -------------------------------------------------------------------------------------------------------

alter table llm.audit_log
  add column key_name text,
  add column cached boolean;

-- The newest first, whatever is asked for; what is rare has small indexes of its own.
create index audit_log_by_user_name on llm.audit_log (user_name, at desc, id desc);
create index audit_log_by_kind on llm.audit_log (kind, at desc, id desc) where kind <> 'request';
create index audit_log_by_outcome on llm.audit_log (outcome, at desc, id desc) where outcome <> 'ok';

-- How far each writer's chain has come, and up to which number of its writer's journal that was. It is brought forward
-- in the transaction that adds the rows: what is sent again is seen to be there already.
create table llm.audit_chains (
  chain text primary key check (length(chain) between 1 and 128),
  position bigint not null check (position >= 0),
  taken bigint not null default 0 check (taken >= 0),
  digest bytea not null check (octet_length(digest) = 32),
  updated_at timestamptz not null default now()
);

create index usage_rollups_by_model on llm.usage_rollups (model, period, period_start desc);

-- Opinions ------------------------------------------------------------------------------------------------------------

alter table llm.feedback
  alter column rating drop not null,
  add column stars smallint check (stars between 1 and 5),
  add constraint feedback_says_something check (num_nonnulls(rating, stars) > 0);

revoke all on all functions in schema llm from public;
