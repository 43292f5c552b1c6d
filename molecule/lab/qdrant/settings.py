"""A collection's settings: what was asked for, filled up with Qdrant's defaults, and the engine's form of it."""

from __future__ import annotations

from typing import Any

import qdrant_edge as edge
from pydantic import BaseModel
from qdrant_client import models

from qdrant.errors import NotDone, Refused

_HNSW = models.HnswConfig(m=16, ef_construct=100, full_scan_threshold=10_000, max_indexing_threads=0, on_disk=False)
_OPTIMIZER = models.OptimizersConfig(
    deleted_threshold=0.2,
    vacuum_min_vector_number=1000,
    default_segment_number=0,
    indexing_threshold=10_000,
    flush_interval_sec=5,
)
_WAL = models.WalConfig(wal_capacity_mb=32, wal_segments_ahead=0, wal_retain_closed=1)


def member(kind: Any, value: Any) -> Any:
    """The engine's member of an enumeration that is written otherwise in JSON; None of None."""
    if value is None:
        return None
    wanted = str(getattr(value, "value", value)).replace("_", "").lower()
    for name in dir(kind):
        if name.replace("_", "").lower() == wanted:
            return getattr(kind, name)
    raise NotDone(f"`{value}` as {kind.__name__}")


def created(asked: models.CreateCollection) -> models.CollectionConfig:
    """The settings of a new collection."""
    for name in ("sharding_method", "strict_mode_config"):
        if getattr(asked, name):
            raise NotDone(f"`{name}`")
    params = models.CollectionParams(
        vectors=asked.vectors if asked.vectors is not None else {},
        shard_number=1,
        replication_factor=1,
        write_consistency_factor=1,
        on_disk_payload=asked.on_disk_payload if asked.on_disk_payload is not None else True,
        payload=asked.payload,
        id_tracker=asked.id_tracker,
        sparse_vectors=asked.sparse_vectors,
    )
    return models.CollectionConfig(
        params=params,
        hnsw_config=_merged(_HNSW, asked.hnsw_config),
        optimizer_config=_optimizer(_OPTIMIZER, asked.optimizers_config),
        wal_config=_merged(_WAL, asked.wal_config),
        quantization_config=asked.quantization_config,
        metadata=asked.metadata,
    )


def updated(present: models.CollectionConfig, asked: models.UpdateCollection) -> models.CollectionConfig:
    """The settings after a change. Raises Refused where it names a vector that there is none of."""
    if asked.strict_mode_config:
        raise NotDone("`strict_mode_config`")
    made = present.model_copy(deep=True)
    made.hnsw_config = _merged(made.hnsw_config, asked.hnsw_config)
    made.optimizer_config = _optimizer(made.optimizer_config, asked.optimizers_config)
    made.params = _merged(made.params, asked.params)
    made.quantization_config = _quantized(made.quantization_config, asked.quantization_config)
    if asked.metadata is not None:
        made.metadata = {**(made.metadata or {}), **asked.metadata}
    dense = vectors(made)
    for name, diff in (asked.vectors or {}).items():
        if name not in dense:
            raise Refused(f"Wrong input: Not existing vector name error: {name}")
        one = dense[name]
        if diff.hnsw_config is not None:
            one.hnsw_config = _merged(one.hnsw_config or models.HnswConfigDiff(), diff.hnsw_config)
        one.quantization_config = _quantized(one.quantization_config, diff.quantization_config)
        if diff.on_disk is not None:
            one.on_disk = diff.on_disk
        if diff.memory is not None:
            one.memory = diff.memory
    for name, sparse in (asked.sparse_vectors or {}).items():
        if name not in (made.params.sparse_vectors or {}):
            raise Refused(f"Wrong input: Not existing vector name error: {name}")
        made.params.sparse_vectors[name] = _merged(made.params.sparse_vectors[name], sparse)
    return made


def vectors(config: models.CollectionConfig) -> dict[str, models.VectorParams]:
    """The dense vectors by name; the nameless one's is empty."""
    found = config.params.vectors
    if isinstance(found, models.VectorParams):
        return {"": found}
    return found or {}


def engine_config(config: models.CollectionConfig) -> edge.EdgeConfig:
    """The same, as the engine takes it."""
    optimizer = config.optimizer_config
    return edge.EdgeConfig(
        vectors={name: _vector(config, one) for name, one in vectors(config).items()},
        sparse_vectors={name: _sparse(one) for name, one in (config.params.sparse_vectors or {}).items()},
        on_disk_payload=config.params.on_disk_payload,
        payload_memory=_memory(config.params.payload),
        id_tracker_memory=_memory(config.params.id_tracker),
        hnsw_config=_hnsw(config.hnsw_config),
        quantization_config=_quantization(config.quantization_config),
        optimizers=edge.EdgeOptimizersConfig(
            deleted_threshold=optimizer.deleted_threshold,
            vacuum_min_vector_number=optimizer.vacuum_min_vector_number,
            default_segment_number=optimizer.default_segment_number,
            max_segment_size=optimizer.max_segment_size,
            indexing_threshold=optimizer.indexing_threshold,
        ),
    )


def index_params(asked: Any) -> Any:
    """The engine's form of a payload index: a type alone, or its parameters."""
    if isinstance(asked, models.PayloadSchemaType):
        return member(edge.PayloadSchemaType, asked)
    kind = getattr(edge, type(asked).__name__)
    given = {name: getattr(asked, name) for name in type(asked).model_fields if name != "type"}
    given = {name: value for name, value in given.items() if value is not None}
    if "memory" in given:
        given["memory"] = member(edge.Memory, given["memory"])
    if "tokenizer" in given:
        given["tokenizer"] = member(edge.TokenizerType, given["tokenizer"])
    for name in ("stopwords", "stemmer", "scoring"):
        if name in given and not isinstance(given[name], bool):
            raise NotDone(f"`{name}` of a text index")
    return kind(**given)


def index_type(asked: Any) -> models.PayloadSchemaType:
    """What kind of index it is."""
    return asked if isinstance(asked, models.PayloadSchemaType) else models.PayloadSchemaType(str(asked.type.value))


def _merged[M: BaseModel](present: M, diff: BaseModel | None) -> M:
    if diff is None:
        return present
    return present.model_copy(update={k: v for k, v in dict(diff).items() if v is not None})


def _optimizer(present: models.OptimizersConfig, diff: models.OptimizersConfigDiff | None) -> models.OptimizersConfig:
    made = _merged(present, diff)
    if not isinstance(made.max_optimization_threads, int):
        made.max_optimization_threads = None  # "auto", which is the engine's own way
    return made


def _quantized(present: Any, diff: Any) -> Any:
    if diff is None:
        return present
    return None if isinstance(diff, models.Disabled) else diff


def _memory(section: Any) -> Any:
    return member(edge.Memory, section.memory) if section is not None else None


def _vector(config: models.CollectionConfig, one: models.VectorParams) -> edge.EdgeVectorParams:
    multi = one.multivector_config
    return edge.EdgeVectorParams(
        size=one.size,
        distance=member(edge.Distance, one.distance),
        on_disk=one.on_disk,
        memory=member(edge.Memory, one.memory),
        datatype=member(edge.VectorStorageDatatype, one.datatype),
        multivector_config=edge.MultiVectorConfig(
            member(edge.MultiVectorComparator, multi.comparator.value.replace("_", ""))
        )
        if multi
        else None,
        quantization_config=_quantization(one.quantization_config),
        hnsw_config=_hnsw(_merged(config.hnsw_config, one.hnsw_config)) if one.hnsw_config else None,
    )


def _sparse(one: models.SparseVectorParams) -> edge.EdgeSparseVectorParams:
    index = one.index or models.SparseIndexParams()
    modifier = None if one.modifier in (None, models.Modifier.NONE) else member(edge.Modifier, one.modifier)
    return edge.EdgeSparseVectorParams(
        full_scan_threshold=index.full_scan_threshold,
        on_disk=index.on_disk,
        memory=member(edge.Memory, index.memory),
        datatype=member(edge.VectorStorageDatatype, index.datatype),
        modifier=modifier,
    )


def _hnsw(config: models.HnswConfig) -> edge.HnswIndexConfig:
    return edge.HnswIndexConfig(
        m=config.m,
        ef_construct=config.ef_construct,
        full_scan_threshold=config.full_scan_threshold,
        max_indexing_threads=config.max_indexing_threads or 0,
        on_disk=config.on_disk,
        memory=member(edge.Memory, config.memory),
        payload_m=config.payload_m,
        inline_storage=config.inline_storage,
    )


def _quantization(config: Any) -> Any:
    if config is None:
        return None
    [(kind, given)] = dict(config).items()
    memory = {"always_ram": given.always_ram, "memory": member(edge.Memory, given.memory)}
    if kind == "scalar":
        return edge.ScalarQuantizationConfig(member(edge.ScalarType, given.type), quantile=given.quantile, **memory)
    if kind == "product":
        return edge.ProductQuantizationConfig(member(edge.CompressionRatio, given.compression), **memory)
    if kind == "binary":
        return edge.BinaryQuantizationConfig(
            encoding=member(edge.BinaryQuantizationEncoding, given.encoding),
            query_encoding=member(edge.BinaryQuantizationQueryEncoding, given.query_encoding),
            **memory,
        )
    return edge.TurboQuantQuantizationConfig(bits=member(edge.TurboQuantBitSize, given.bits), **memory)
