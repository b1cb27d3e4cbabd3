"""Thin client of Tessera: recommendations from Triton (HTTP or gRPC), features from Feast's feature server."""

from tessera_rec_client.errors import (
    Busy,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    ServerError,
    ServerUnavailable,
    TesseraClientError,
    WrongAnswer,
)
from tessera_rec_client.features import AsyncFeatures, Features
from tessera_rec_client.recommender import AsyncRecommender, Recommender
from tessera_rec_client.results import Item, ItemFeatures, Recommendations, SemanticId, TopK, User

__all__ = [
    "AsyncFeatures",
    "AsyncRecommender",
    "Busy",
    "DeadlineExceeded",
    "Features",
    "InvalidRequest",
    "Item",
    "ItemFeatures",
    "NotFound",
    "Recommendations",
    "Recommender",
    "SemanticId",
    "ServerError",
    "ServerUnavailable",
    "TesseraClientError",
    "TopK",
    "User",
    "WrongAnswer",
]
