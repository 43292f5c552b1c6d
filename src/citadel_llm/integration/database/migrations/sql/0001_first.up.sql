-- Names are the site's own words; times are points in time, kept as such; a digest is SHA-256, 32 bytes.

create table llm.settings (
  name text primary key,
  value jsonb not null,
  updated_at timestamptz not null default now()
);
insert into llm.settings (name, value) values ('audit_retention_months', '13');

-- Models, and where each is served ------------------------------------------------------------------------------------

create table llm.models (
  name text primary key check (name ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
  display_name text not null,
  kind text not null check (kind in ('generate', 'embedding')),
  owned_by text not null,
  repository text not null,
  revision text not null,
  max_tokens integer not null check (max_tokens > 0),
  metadata jsonb not null default '{}',
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  retired_at timestamptz
);

create table llm.deployments (
  id bigint generated always as identity primary key,
  model text not null references llm.models (name),
  host text not null,
  port integer not null check (port between 1 and 65535),
  weights_version text not null,
  engine_version text not null,
  release text not null,
  metadata jsonb not null default '{}',
  deployed_at timestamptz not null default now(),
  retired_at timestamptz
);
create unique index deployments_live on llm.deployments (host, port) where retired_at is null;
create index deployments_by_model on llm.deployments (model, deployed_at desc);

-- Who may do what -----------------------------------------------------------------------------------------------------

create table llm.users (
  id uuid primary key default gen_random_uuid(),
  name text not null check (name = lower(name) and length(name) between 1 and 128),
  display_name text not null default '',
  email text,
  password_hash text, -- argon2id; none: no password opens it
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  disabled_at timestamptz
);
create unique index users_by_name on llm.users (name);

create table llm.roles (
  name text primary key check (name ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
  description text not null default '',
  built_in boolean not null default false,
  created_at timestamptz not null default now()
);
insert into llm.roles (name, description, built_in) values
  ('admin', 'May do everything', true),
  ('operator', 'Runs the service', true),
  ('developer', 'Uses the models', true),
  ('viewer', 'Looks, and changes nothing', true);

-- What a role permits; `*` stands for every model. What is not granted is denied.
create table llm.grants (
  role text not null references llm.roles (name) on delete cascade,
  permission text not null check (permission ~ '^[a-z0-9][a-z0-9._:*-]{0,126}$'),
  model text not null default '*',
  created_at timestamptz not null default now(),
  primary key (role, permission, model)
);

create table llm.user_roles (
  user_id uuid not null references llm.users (id) on delete cascade,
  role text not null references llm.roles (name) on delete cascade,
  granted_by uuid references llm.users (id) on delete set null,
  granted_at timestamptz not null default now(),
  primary key (user_id, role)
);
create index user_roles_by_role on llm.user_roles (role);

-- A key itself is never kept: `digest` finds it, `prefix` shows which one it is.
create table llm.api_keys (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references llm.users (id) on delete cascade,
  name text not null check (length(name) between 1 and 128),
  prefix text not null check (length(prefix) between 4 and 16),
  digest bytea not null check (octet_length(digest) = 32),
  limits jsonb not null default '{}',
  created_at timestamptz not null default now(),
  expires_at timestamptz check (expires_at > created_at),
  revoked_at timestamptz,
  replaced_by uuid references llm.api_keys (id) on delete set null,
  last_used_at timestamptz
);
create unique index api_keys_by_digest on llm.api_keys (digest);
create index api_keys_by_user on llm.api_keys (user_id, created_at desc);
create index api_keys_by_prefix on llm.api_keys (prefix);
create index api_keys_by_expiry on llm.api_keys (expires_at) where revoked_at is null and expires_at is not null;

-- Conversations -------------------------------------------------------------------------------------------------------

create table llm.sessions (
  id text primary key check (length(id) between 1 and 64),
  user_id uuid not null references llm.users (id) on delete cascade,
  model text,
  title text not null default '' check (length(title) <= 512),
  metadata jsonb not null default '{}',
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  expires_at timestamptz
);
create index sessions_by_user on llm.sessions (user_id, updated_at desc);
create index sessions_by_expiry on llm.sessions (expires_at) where expires_at is not null;

create table llm.messages (
  session_id text not null references llm.sessions (id) on delete cascade,
  position integer not null check (position >= 0),
  id text not null,
  role text not null check (role in ('system', 'developer', 'user', 'assistant', 'tool')),
  content jsonb not null,
  model text,
  request_id text,
  tokens integer check (tokens >= 0),
  created_at timestamptz not null default now(),
  primary key (session_id, position)
);
create unique index messages_by_id on llm.messages (id);

-- What was done -------------------------------------------------------------------------------------------------------

-- `id` makes a row that is sent again the same row. Each writer has a chain of its own, in which every row's digest
-- covers the one before it, so that a changed or a missing row shows. Names are as they were then: no row here
-- depends on one elsewhere.
create table llm.audit_log (
  at timestamptz not null,
  id uuid not null,
  chain text not null check (length(chain) between 1 and 128),
  position bigint not null check (position >= 0),
  previous_digest bytea not null check (octet_length(previous_digest) = 32),
  digest bytea not null check (octet_length(digest) = 32),
  kind text not null check (kind in ('request', 'admin', 'security')),
  action text not null,
  request_id text not null,
  user_id uuid,
  user_name text,
  key_id uuid,
  model text,
  served_by text,
  outcome text not null,
  status smallint,
  error_code text,
  streamed boolean,
  prompt_tokens integer check (prompt_tokens >= 0),
  completion_tokens integer check (completion_tokens >= 0),
  first_token_ms real,
  latency_ms real,
  client_address inet,
  content_policy text not null default 'none' check (content_policy in ('none', 'hash', 'full')),
  content jsonb,
  detail jsonb,
  primary key (at, id)
) partition by range (at);
create index audit_log_by_request on llm.audit_log (request_id);
create index audit_log_by_user on llm.audit_log (user_id, at desc);
create index audit_log_by_model on llm.audit_log (model, at desc);
create index audit_log_by_chain on llm.audit_log (chain, position);

create function llm.audit_refuse_change() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  raise exception 'the audit log is append-only: % is refused', lower(tg_op) using errcode = 'insufficient_privilege';
end
$$;
create trigger audit_append_only before update or delete on llm.audit_log
  for each row execute function llm.audit_refuse_change();
create trigger audit_no_truncate before truncate on llm.audit_log
  for each statement execute function llm.audit_refuse_change();

-- The months, in UTC, from this one to `months_ahead` later, that have no partition.
create function llm.audit_missing_months(months_ahead integer) returns setof date
language sql stable set search_path = pg_catalog, pg_temp as $$
  select cast(month as date)
  from generate_series(
    date_trunc('month', now() at time zone 'UTC'),
    date_trunc('month', now() at time zone 'UTC') + make_interval(months => least(greatest(months_ahead, 0), 12)),
    interval '1 month'
  ) as month
  where to_regclass('llm.audit_log_' || to_char(month, 'YYYY_MM')) is null
  order by month
$$;

create function llm.audit_missing_partitions(months_ahead integer) returns integer
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select cast(count(*) as integer) from llm.audit_missing_months(months_ahead)
$$;

-- Makes them; how many. A table that is attached holds up no writer, as one that is made as a partition would.
create function llm.audit_make_partitions(months_ahead integer) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '5s' as $$
declare
  month date;
  part text;
  made integer := 0;
begin
  perform pg_advisory_xact_lock(hashtext('llm.audit_log'));
  for month in select audit_missing_months from llm.audit_missing_months(months_ahead) loop
    part := 'audit_log_' || to_char(month, 'YYYY_MM');
    execute format('create table llm.%I (like llm.audit_log including defaults including constraints)', part);
    execute format(
      'alter table llm.audit_log attach partition llm.%I for values from (%L) to (%L)', part,
      to_char(month, 'YYYY-MM-DD') || ' 00:00+00', to_char(month + interval '1 month', 'YYYY-MM-DD') || ' 00:00+00'
    );
    execute format(
      'create trigger audit_no_truncate before truncate on llm.%I '
      'for each statement execute function llm.audit_refuse_change()', part
    );
    made := made + 1;
  end loop;
  return made;
end
$$;

-- Drops the partitions whose months are past the retention; how many. The retention is the owner's to set.
create function llm.audit_drop_partitions() returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '5s' as $$
declare
  part text;
  dropped integer := 0;
  months integer := (select cast(value as integer) from llm.settings where name = 'audit_retention_months');
  oldest text;
begin
  if months is null or months < 1 then
    raise exception 'audit_retention_months: expected 1 or more';
  end if;
  perform pg_advisory_xact_lock(hashtext('llm.audit_log'));
  oldest := 'audit_log_' || to_char((now() at time zone 'UTC') - make_interval(months => months), 'YYYY_MM');
  for part in
    select relname from pg_inherits join pg_class c on c.oid = inhrelid
    where inhparent = cast('llm.audit_log' as regclass) and relname ~ '^audit_log_\d{4}_\d\d$' and relname < oldest
    order by relname
  loop
    execute format('drop table llm.%I', part);
    dropped := dropped + 1;
  end loop;
  return dropped;
end
$$;

-- Sums, opinions and bounds -------------------------------------------------------------------------------------------

create table llm.usage_rollups (
  period text not null check (period in ('hour', 'day', 'month')),
  period_start timestamptz not null,
  user_id uuid not null,
  key_id uuid not null,
  model text not null,
  requests bigint not null default 0,
  failed_requests bigint not null default 0,
  prompt_tokens bigint not null default 0,
  completion_tokens bigint not null default 0,
  cached_requests bigint not null default 0,
  latency_ms_sum double precision not null default 0,
  updated_at timestamptz not null default now(),
  primary key (period, period_start, user_id, key_id, model)
);
create index usage_rollups_by_user on llm.usage_rollups (user_id, period, period_start desc);

create table llm.feedback (
  id uuid primary key default gen_random_uuid(),
  request_id text not null,
  user_id uuid references llm.users (id) on delete set null,
  model text,
  rating smallint not null check (rating between -1 and 1),
  labels text[] not null default '{}',
  comment text not null default '' check (length(comment) <= 4096),
  created_at timestamptz not null default now()
);
create unique index feedback_by_request on llm.feedback (request_id, user_id);
create index feedback_by_model on llm.feedback (model, created_at desc);

-- `subject` is the user's or the key's id, or the model's name.
create table llm.budgets (
  scope text not null check (scope in ('user', 'key', 'model', 'everyone')),
  subject text not null,
  period text not null check (period in ('day', 'month')),
  max_requests bigint check (max_requests >= 0),
  max_tokens bigint check (max_tokens >= 0),
  updated_at timestamptz not null default now(),
  primary key (scope, subject, period),
  check (max_requests is not null or max_tokens is not null)
);

revoke all on all functions in schema llm from public;
