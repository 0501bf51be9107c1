"""Starts the server without one optimization: ``python without.py TRICK [flags of the server]``; "" keeps all.

A trick is switched off by replacing a function in this process, so that the server needs no setting for it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def no_header_cache():
    from app.http.connection.header_cache import HeaderCache

    HeaderCache.remember = lambda *_: None


def no_lone_run():
    from app.engine.batcher import Batcher

    run_inline = Batcher._run_inline

    def run(self, batch):
        run_inline(self, batch)
        self._alone = False

    Batcher._run_inline = run


def no_body_pool():
    from app.http.connection.buffer_pool import BodyBuffers

    BodyBuffers.first = BodyBuffers.take = lambda *_: None


def no_batch_accept():
    from app.process.acceptor import Acceptor

    Acceptor.connection_made = lambda _: None


TRICKS = {
    "header cache": no_header_cache,
    "lone request at once": no_lone_run,
    "body pool": no_body_pool,
    "accepting in batches": no_batch_accept,
}

if __name__ == "__main__":
    trick = sys.argv.pop(1)
    if trick:
        TRICKS[trick]()
    from app.__main__ import main

    sys.exit(main())
