"""A server on the loopback address, in a thread of its own for the length of a `with` block."""

import asyncio
import threading

from aiohttp import web


class LoopbackServer:
    """A subclass gives `app()`; `url` is where it listens, with `path` behind it."""

    path = ""

    async def start(self):
        self.runner = web.AppRunner(self.app(), shutdown_timeout=0.1, access_log=None)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}{self.path}"

    def __enter__(self):
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self.start())
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exc):
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()
