"""``concurrent.futures``, imported when it is first used: that takes half as long as all other imports together."""

__all__ = ["futures"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from concurrent import futures
else:

    class _Futures:
        def __getattr__(self, name: str) -> object:
            import concurrent.futures

            return getattr(concurrent.futures, name)

    futures = _Futures()
