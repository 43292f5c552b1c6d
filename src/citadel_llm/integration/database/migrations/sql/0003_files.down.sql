drop table llm.vector_store_files;
drop table llm.vector_store_batches;
drop table llm.vector_stores;
drop table llm.files;
