"""One collection: its folder on the disk, its settings, and what may be asked of it and written to it.

The engine's write-ahead log keeps what was acknowledged, whatever ends the process.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import qdrant_edge as edge
from pydantic import TypeAdapter
from qdrant_client import models

from qdrant import filters, points, queries, settings
from qdrant.errors import NotFound, Refused
from qdrant.shard import MANY, Shard

_INDEX = TypeAdapter(models.PayloadFieldSchema)
_PAGE = 10


def write_json(path: Path, data: Any) -> None:
    """Replaces a file in one step, and for good."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        json.dump(data, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)


class Collection:
    """Made by `create` or `load`."""

    def __init__(self, folder: Path, config: models.CollectionConfig, indexes: dict[str, Any], shard: Shard) -> None:
        self.folder = folder
        self.config = config
        self.indexes = indexes  # by field
        self.shard = shard
        self._changing = threading.Lock()
        self._operations = itertools.count(1)

    @classmethod
    def create(cls, folder: Path, config: models.CollectionConfig) -> Collection:
        """A new one, empty. Raises Refused for settings that the engine does not take."""
        folder.mkdir(parents=True)
        made = cls(folder, config, {}, Shard(folder, config, new=True))
        made._save()
        return made

    @classmethod
    def load(cls, folder: Path) -> Collection:
        """What is on the disk; its optimizing goes on where it was left."""
        saved = json.loads((folder / "collection.json").read_text())
        config = models.CollectionConfig.model_validate(saved["config"])
        indexes = {field: _INDEX.validate_python(schema) for field, schema in saved["indexes"].items()}
        return cls(folder, config, indexes, Shard(folder, config))

    def close(self) -> None:
        """All on the disk, and nothing more to be asked."""
        self.shard.close()

    # -- settings ---------------------------------------------------------------------------

    def info(self) -> models.CollectionInfo:
        """Its state and settings."""
        found = self.shard.read(lambda shard: shard.info())
        counts = {field: one.points for field, one in found.payload_schema.items()}
        busy = bool(self.shard.written_at)
        return models.CollectionInfo.model_construct(
            status=models.CollectionStatus.YELLOW if busy else models.CollectionStatus.GREEN,
            optimizer_status=models.OptimizersStatusOneOf.OK,
            indexed_vectors_count=found.indexed_vectors_count,
            points_count=found.points_count,
            segments_count=found.segments_count,
            config=self.config,
            payload_schema={
                field: models.PayloadIndexInfo.model_construct(
                    data_type=settings.index_type(schema),
                    params=None if isinstance(schema, models.PayloadSchemaType) else schema,
                    points=counts.get(field, 0),
                )
                for field, schema in self.indexes.items()
            },
        )

    def configure(self, asked: models.UpdateCollection) -> None:
        """Other settings; the optimizer makes the segments anew that were built with other ones."""
        with self._changing:
            config = settings.updated(self.config, asked)
            self.shard.configure(config)
            self.config = config
            self._save()

    def index(self, field: str, schema: Any) -> models.UpdateResult:
        """An index on a field of the payload, in the place of any other one."""
        result = self._update(edge.UpdateOperation.create_field_index(field, settings.index_params(schema)))
        self.indexes[field] = schema
        self._save()
        return result

    def drop_index(self, field: str) -> models.UpdateResult:
        """No index on the field."""
        result = self._update(edge.UpdateOperation.delete_field_index(field))
        self.indexes.pop(field, None)
        self._save()
        return result

    @contextlib.contextmanager
    def still(self) -> Iterator[Path]:
        """Its folder, complete and unchanging, while the block runs."""
        with self.shard.still():
            yield self.folder

    def _save(self) -> None:
        indexes = {field: _INDEX.dump_python(schema, mode="json") for field, schema in self.indexes.items()}
        config = self.config.model_dump(mode="json")
        write_json(self.folder / "collection.json", {"config": config, "indexes": indexes})

    # -- reading ----------------------------------------------------------------------------

    def query(self, asked: models.QueryRequest) -> list[models.ScoredPoint]:
        """The best points for a query, or any points where there is none."""
        found = self.shard.read(lambda shard: shard.query(queries.made(asked, functools.partial(_stored, shard))))
        return [points.scored(one, points.with_payload(asked.with_payload, False)) for one in found]

    def scroll(self, asked: models.ScrollRequest) -> tuple[list[models.Record], int | str | None]:
        """A page of points by id, or by a field, and the id that the next page begins with."""
        payload = points.with_payload(asked.with_payload, True)
        request = edge.ScrollRequest(
            offset=points.point_id(asked.offset) if asked.offset is not None else None,
            limit=_PAGE if asked.limit is None else asked.limit,
            filter=filters.made(asked.filter),
            with_payload=payload,
            with_vector=asked.with_vector if asked.with_vector is not None else False,
            order_by=queries.order(asked.order_by),
        )
        found, following = self.shard.read(lambda shard: shard.scroll(request))
        return [points.record(one, payload) for one in found], (
            None if following is None else points.shown_id(following)
        )

    def retrieve(self, asked: models.PointRequest) -> list[models.Record]:
        """The points of these ids, as far as there are any."""
        payload = points.with_payload(asked.with_payload, True)
        ids = [points.point_id(one) for one in asked.ids]
        vector = asked.with_vector if asked.with_vector is not None else False
        found = self.shard.read(lambda shard: shard.retrieve(ids, payload, vector))
        return [points.record(one, payload) for one in found]

    def count(self, asked: models.CountRequest) -> int:
        """How many points the filter lets through."""
        request = edge.CountRequest(exact=asked.exact is not False, filter=filters.made(asked.filter))
        return int(self.shard.read(lambda shard: shard.count(request)))

    def facet(self, asked: models.FacetRequest) -> list[models.FacetValueHit]:
        """The most frequent values of a field."""
        request = edge.FacetRequest(
            key=asked.key, limit=asked.limit or _PAGE, exact=bool(asked.exact), filter=filters.made(asked.filter)
        )
        found = self.shard.read(lambda shard: shard.facet(request))
        return [models.FacetValueHit.model_construct(value=hit.value, count=hit.count) for hit in found.hits]

    # -- writing ----------------------------------------------------------------------------

    def upsert(self, asked: models.PointsBatch | models.PointsList) -> models.UpdateResult:
        """Points, new or in the place of those of the same id."""
        mode = settings.member(edge.UpdateMode, asked.update_mode)
        condition = filters.made(asked.update_filter)
        made = points.inserted(asked)
        return self._update(edge.UpdateOperation.upsert_points(made, condition, mode), len(made))

    def update_vectors(self, asked: models.UpdateVectors) -> models.UpdateResult:
        """Other vectors of points that are there."""
        condition = filters.made(asked.update_filter)
        made = points.moved(asked)
        return self._update(edge.UpdateOperation.update_vectors(made, condition), len(made))

    def delete(self, asked: models.PointIdsList | models.FilterSelector) -> models.UpdateResult:
        """These points away."""
        return self._each("delete_points", asked)

    def delete_vectors(self, asked: models.DeleteVectors) -> models.UpdateResult:
        """Vectors of these names away from these points."""
        return self._each("delete_vectors", asked, list(asked.vector))

    def set_payload(self, asked: models.SetPayload) -> models.UpdateResult:
        """Fields of the payload, beside those that are there."""
        return self._each("set_payload", asked, asked.payload, asked.key)

    def overwrite_payload(self, asked: models.SetPayload) -> models.UpdateResult:
        """The payload, whole."""
        return self._each("overwrite_payload", asked, asked.payload, asked.key)

    def delete_payload(self, asked: models.DeletePayload) -> models.UpdateResult:
        """Fields of the payload away."""
        return self._each("delete_payload", asked, asked.keys)

    def clear_payload(self, asked: models.PointIdsList | models.FilterSelector) -> models.UpdateResult:
        """The whole payload away."""
        return self._each("clear_payload", asked)

    def _each(self, verb: str, asked: Any, *values: Any) -> models.UpdateResult:
        ids = getattr(asked, "points", None)
        if ids is not None:
            chosen = [points.point_id(one) for one in ids]
            return self._update(getattr(edge.UpdateOperation, verb)(chosen, *values), len(chosen))
        if getattr(asked, "filter", None) is None:
            raise Refused("Wrong input: Either list of point ids or filter must be specified")
        operation = getattr(edge.UpdateOperation, f"{verb}_by_filter")(filters.made(asked.filter), *values)
        return self._update(operation, MANY)

    def _update(self, operation: Any, touched: int = 0) -> models.UpdateResult:
        self.shard.write(operation, touched)
        number = next(self._operations)
        return models.UpdateResult.model_construct(operation_id=number, status=models.UpdateStatus.COMPLETED)


def _stored(shard: Any, point: Any, using: str) -> Any:
    """The vector of a point that is there."""
    found = shard.retrieve([point], False, [using])
    if not found:
        raise NotFound(f"Not found: No point with id {point} found")
    vector = found[0].vector
    vector = vector.get(using) if isinstance(vector, dict) else vector
    if vector is None:
        raise Refused(f"Wrong input: point {point} has no vector `{using}`")
    return vector
