-- What callers upload. The contents lie on disk, under their digest.
create table llm.files (
  id text primary key check (length(id) between 1 and 64),
  user_id uuid not null references llm.users (id),
  filename text not null check (length(filename) between 1 and 512),
  purpose text not null check (length(purpose) between 1 and 32),
  bytes bigint not null check (bytes >= 0),
  digest bytea not null check (octet_length(digest) = 32),
  created_at timestamptz not null default now(),
  expires_at timestamptz
);
create index files_by_user on llm.files (user_id, created_at desc, id desc);
create index files_by_digest on llm.files (digest);
create index files_by_expiry on llm.files (expires_at) where expires_at is not null;

-- `deleted_at`: nobody sees it any more; it goes when nothing of it is left in Qdrant.
create table llm.vector_stores (
  id text primary key check (length(id) between 1 and 64),
  user_id uuid not null references llm.users (id),
  name text not null default '' check (length(name) <= 512),
  description text not null default '' check (length(description) <= 2048),
  metadata jsonb not null default '{}',
  model text not null, -- whose vectors are in it
  created_at timestamptz not null default now(),
  last_active_at timestamptz not null default now(),
  expires_days integer check (expires_days between 1 and 365),
  deleted_at timestamptz
);
create index vector_stores_by_user on llm.vector_stores (user_id, created_at desc, id desc);
create index vector_stores_deleted on llm.vector_stores (deleted_at) where deleted_at is not null;

create table llm.vector_store_batches (
  id text primary key check (length(id) between 1 and 64),
  store_id text not null references llm.vector_stores (id) on delete cascade,
  created_at timestamptz not null default now(),
  cancelled_at timestamptz
);
create index vector_store_batches_by_store on llm.vector_store_batches (store_id);

-- A file in a store, and the work that puts it there or takes it away. Whoever works holds a lease; a row whose lease
-- has run out is taken up by anybody, from `chunks_done` on. `deleting`: nobody sees it any more, and it goes when
-- Qdrant has nothing of it left. `generation` rises when the work begins anew. `dirty`: Qdrant may have some of it.
create table llm.vector_store_files (
  store_id text not null references llm.vector_stores (id) on delete cascade,
  file_id text not null,
  user_id uuid not null references llm.users (id),
  batch_id text references llm.vector_store_batches (id) on delete set null,
  status text not null default 'in_progress'
    check (status in ('in_progress', 'completed', 'failed', 'cancelled', 'deleting')),
  attributes jsonb not null default '{}',
  max_tokens integer not null check (max_tokens between 1 and 65536),
  overlap_tokens integer not null check (overlap_tokens between 0 and 65536),
  created_at timestamptz not null default now(),
  dirty boolean not null default false,
  chunks_done integer not null default 0 check (chunks_done >= 0),
  usage_bytes bigint not null default 0 check (usage_bytes >= 0),
  error_code text,
  error_message text,
  generation integer not null default 1,
  attempts integer not null default 0,
  try_at timestamptz not null default now(),
  lease uuid,
  lease_until timestamptz,
  primary key (store_id, file_id)
);
create index vector_store_files_by_batch on llm.vector_store_files (batch_id) where batch_id is not null;
create index vector_store_files_by_file on llm.vector_store_files (file_id);
create index vector_store_files_to_do on llm.vector_store_files (try_at)
  where status in ('in_progress', 'deleting') or dirty;

revoke all on all functions in schema llm from public;
