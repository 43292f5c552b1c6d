"""Qdrant's gRPC surface, by the protobufs and the conversions that come with qdrant-client."""

from __future__ import annotations

from typing import Any

import grpc
from qdrant_client import grpc as wire
from qdrant_client import models
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc

from qdrant import rest
from qdrant.access import Access
from qdrant.calls import Guard, done, given
from qdrant.errors import NotDone
from qdrant.snapshots import Snapshots
from qdrant.store import Store

_MESSAGE_BYTES = 256 << 20


def _payload(message: Any) -> dict[str, Any]:
    return GrpcToRest.convert_payload(message)


def _updated(result: models.UpdateResult) -> wire.UpdateResult:
    return RestToGrpc.convert_update_result(result)


def _changed(result: models.UpdateResult) -> wire.PointsOperationResponse:
    return wire.PointsOperationResponse(result=_updated(result))


class Health(wire.QdrantServicer):
    """Who answers."""

    async def HealthCheck(self, request: Any, context: Any) -> Any:
        return wire.HealthCheckReply(title="qdrant - vector search engine", version=rest.VERSION)


class Collections(wire.CollectionsServicer):
    """Collections and aliases."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @done
    def Get(self, request: Any) -> Any:
        info = self._store.get(request.collection_name).info()
        return wire.GetCollectionInfoResponse(result=RestToGrpc.convert_collection_info(info))

    @done
    def List(self, request: Any) -> Any:
        return wire.ListCollectionsResponse(
            collections=[wire.CollectionDescription(name=name) for name in self._store.names()]
        )

    @done
    def CollectionExists(self, request: Any) -> Any:
        found = self._store.exists(request.collection_name)
        return wire.CollectionExistsResponse(result=wire.CollectionExists(exists=found))

    @done
    def Create(self, request: Any) -> Any:
        if request.HasField("sharding_method") or request.HasField("strict_mode_config"):
            raise NotDone("`sharding_method` and `strict_mode_config`")
        asked = models.CreateCollection(
            vectors=given(request, "vectors_config", GrpcToRest.convert_vectors_config),
            sparse_vectors=given(request, "sparse_vectors_config", GrpcToRest.convert_sparse_vector_config),
            on_disk_payload=given(request, "on_disk_payload"),
            payload=given(request, "payload", GrpcToRest.convert_payload_storage_params),
            id_tracker=given(request, "id_tracker", GrpcToRest.convert_id_tracker_params),
            hnsw_config=given(request, "hnsw_config", GrpcToRest.convert_hnsw_config_diff),
            wal_config=given(request, "wal_config", GrpcToRest.convert_wal_config_diff),
            optimizers_config=given(request, "optimizers_config", GrpcToRest.convert_optimizers_config_diff),
            quantization_config=given(request, "quantization_config", GrpcToRest.convert_quantization_config),
            metadata=_payload(request.metadata) or None,
        )
        return wire.CollectionOperationResponse(result=self._store.create(request.collection_name, asked))

    @done
    def Update(self, request: Any) -> Any:
        sparse = given(request, "sparse_vectors_config", GrpcToRest.convert_sparse_vector_config)
        asked = models.UpdateCollection(
            vectors=given(request, "vectors_config", GrpcToRest.convert_vectors_config_diff),
            sparse_vectors=sparse,
            params=given(request, "params", GrpcToRest.convert_collection_params_diff),
            hnsw_config=given(request, "hnsw_config", GrpcToRest.convert_hnsw_config_diff),
            optimizers_config=given(request, "optimizers_config", GrpcToRest.convert_optimizers_config_diff),
            quantization_config=given(request, "quantization_config", GrpcToRest.convert_quantization_config_diff),
            metadata=_payload(request.metadata) or None,
        )
        self._store.get(request.collection_name).configure(asked)
        return wire.CollectionOperationResponse(result=True)

    @done
    def Delete(self, request: Any) -> Any:
        return wire.CollectionOperationResponse(result=self._store.delete(request.collection_name))

    @done
    def UpdateAliases(self, request: Any) -> Any:
        actions = [GrpcToRest.convert_alias_operations(action) for action in request.actions]
        return wire.CollectionOperationResponse(result=self._store.change_aliases(actions))

    @done
    def ListCollectionAliases(self, request: Any) -> Any:
        name = self._store.get(request.collection_name).folder.name
        return wire.ListAliasesResponse(
            aliases=[RestToGrpc.convert_alias_description(one) for one in self._store.aliases(name)]
        )

    @done
    def ListAliases(self, request: Any) -> Any:
        return wire.ListAliasesResponse(
            aliases=[RestToGrpc.convert_alias_description(one) for one in self._store.aliases()]
        )


class Points(wire.PointsServicer):
    """Points: writing, reading, searching."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def _of(self, request: Any) -> Any:
        return self._store.get(request.collection_name)

    @done
    def Upsert(self, request: Any) -> Any:
        asked = models.PointsList.model_construct(
            points=[GrpcToRest.convert_point_struct(point) for point in request.points],
            update_filter=given(request, "update_filter", GrpcToRest.convert_filter),
            update_mode=given(request, "update_mode", GrpcToRest.convert_update_mode),
        )
        return _changed(self._of(request).upsert(asked))

    @done
    def UpdateVectors(self, request: Any) -> Any:
        asked = models.UpdateVectors.model_construct(
            points=[GrpcToRest.convert_point_vectors(point) for point in request.points],
            update_filter=given(request, "update_filter", GrpcToRest.convert_filter),
        )
        return _changed(self._of(request).update_vectors(asked))

    @done
    def Delete(self, request: Any) -> Any:
        return _changed(self._of(request).delete(GrpcToRest.convert_points_selector(request.points)))

    @done
    def DeleteVectors(self, request: Any) -> Any:
        chosen = dict(GrpcToRest.convert_points_selector(request.points_selector))
        chosen["vector"] = list(request.vectors.names)
        return _changed(self._of(request).delete_vectors(models.DeleteVectors(**chosen)))

    @done
    def SetPayload(self, request: Any) -> Any:
        return _changed(self._of(request).set_payload(self._payload_of(request)))

    @done
    def OverwritePayload(self, request: Any) -> Any:
        return _changed(self._of(request).overwrite_payload(self._payload_of(request)))

    @staticmethod
    def _payload_of(request: Any) -> models.SetPayload:
        chosen = dict(GrpcToRest.convert_points_selector(request.points_selector))
        return models.SetPayload(payload=_payload(request.payload), key=given(request, "key"), **chosen)

    @done
    def DeletePayload(self, request: Any) -> Any:
        chosen = dict(GrpcToRest.convert_points_selector(request.points_selector))
        return _changed(self._of(request).delete_payload(models.DeletePayload(keys=list(request.keys), **chosen)))

    @done
    def ClearPayload(self, request: Any) -> Any:
        return _changed(self._of(request).clear_payload(GrpcToRest.convert_points_selector(request.points)))

    @done
    def UpdateBatch(self, request: Any) -> Any:
        collection = self._of(request)
        operations = [GrpcToRest.convert_points_update_operation(one) for one in request.operations]
        return wire.UpdateBatchResponse(result=[_updated(rest.apply(collection, one)) for one in operations])

    @done
    def CreateFieldIndex(self, request: Any) -> Any:
        if request.HasField("field_index_params"):
            schema = GrpcToRest.convert_payload_schema_params(request.field_index_params)
        elif request.HasField("field_type"):
            name = wire.FieldType.Name(request.field_type).removeprefix("FieldType").lower()
            schema = models.PayloadSchemaType(name)
        else:
            raise NotDone("an index whose type is to be guessed")
        return _changed(self._of(request).index(request.field_name, schema))

    @done
    def DeleteFieldIndex(self, request: Any) -> Any:
        return _changed(self._of(request).drop_index(request.field_name))

    @done
    def Get(self, request: Any) -> Any:
        asked = models.PointRequest(
            ids=[GrpcToRest.convert_point_id(one) for one in request.ids],
            with_payload=given(request, "with_payload", GrpcToRest.convert_with_payload_interface),
            with_vector=given(request, "with_vectors", GrpcToRest.convert_with_vectors_selector),
        )
        return wire.GetResponse(result=[RestToGrpc.convert_record(one) for one in self._of(request).retrieve(asked)])

    @done
    def Scroll(self, request: Any) -> Any:
        asked = models.ScrollRequest(
            offset=given(request, "offset", GrpcToRest.convert_point_id),
            limit=given(request, "limit"),
            filter=given(request, "filter", GrpcToRest.convert_filter),
            with_payload=given(request, "with_payload", GrpcToRest.convert_with_payload_interface),
            with_vector=given(request, "with_vectors", GrpcToRest.convert_with_vectors_selector),
            order_by=given(request, "order_by", GrpcToRest.convert_order_by),
        )
        found, following = self._of(request).scroll(asked)
        return wire.ScrollResponse(
            result=[RestToGrpc.convert_record(one) for one in found],
            next_page_offset=None if following is None else RestToGrpc.convert_extended_point_id(following),
        )

    @done
    def Count(self, request: Any) -> Any:
        asked = models.CountRequest(
            filter=given(request, "filter", GrpcToRest.convert_filter), exact=given(request, "exact")
        )
        return wire.CountResponse(result=wire.CountResult(count=self._of(request).count(asked)))

    @done
    def Query(self, request: Any) -> Any:
        return wire.QueryResponse(result=self._found(request))

    @done
    def QueryBatch(self, request: Any) -> Any:
        return wire.QueryBatchResponse(
            result=[wire.BatchResult(result=self._found(one, request)) for one in request.query_points]
        )

    def _found(self, request: Any, batch: Any = None) -> list[Any]:
        asked = GrpcToRest.convert_query_points(request)
        found = self._of(batch if batch is not None else request).query(asked)
        return [RestToGrpc.convert_scored_point(one) for one in found]

    @done
    def Facet(self, request: Any) -> Any:
        asked = models.FacetRequest(
            key=request.key,
            limit=given(request, "limit"),
            exact=given(request, "exact"),
            filter=given(request, "filter", GrpcToRest.convert_filter),
        )
        return wire.FacetResponse(
            hits=[RestToGrpc.convert_facet_value_hit(one) for one in self._of(request).facet(asked)]
        )


class SnapshotCalls(wire.SnapshotsServicer):
    """Snapshots of a collection; fetching and recovering are REST's alone, as in Qdrant."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots

    @done
    def Create(self, request: Any) -> Any:
        made = self._snapshots.create(request.collection_name)
        return wire.CreateSnapshotResponse(snapshot_description=_described(made))

    @done
    def List(self, request: Any) -> Any:
        found = self._snapshots.list(request.collection_name)
        return wire.ListSnapshotsResponse(snapshot_descriptions=[_described(one) for one in found])

    @done
    def Delete(self, request: Any) -> Any:
        self._snapshots.delete(request.collection_name, request.snapshot_name)
        return wire.DeleteSnapshotResponse()


def _described(one: models.SnapshotDescription) -> Any:
    return RestToGrpc.convert_snapshot_description(one)


def server(store: Store, snapshots: Snapshots, access: Access, address: str) -> grpc.aio.Server:
    """Not started yet; `address` as gRPC writes it, `unix:/PATH`."""
    made = grpc.aio.server(
        interceptors=[Guard(access)],
        options=[("grpc.max_receive_message_length", _MESSAGE_BYTES), ("grpc.max_send_message_length", _MESSAGE_BYTES)],
    )
    wire.add_QdrantServicer_to_server(Health(), made)
    wire.add_CollectionsServicer_to_server(Collections(store), made)
    wire.add_PointsServicer_to_server(Points(store), made)
    wire.add_SnapshotsServicer_to_server(SnapshotCalls(snapshots), made)
    made.add_insecure_port(address)
    return made
