"""No worker process outlives the process that it works for, however that ends: `kill -9` and the lack of memory included.

Each worker of a pool holds both ends of the pipe by which work comes, so that it would wait for ever, and with it the server it
was forked from. What the main process alone keeps open is the pipe by which it started the worker: its end is waited for.
"""

from __future__ import annotations

import multiprocessing
import os
import threading


def end_with_main() -> None:
    """From now on this worker ends when the process that started it has ended. A process that is no worker is left as it is."""
    main = multiprocessing.parent_process()
    if main is None:
        return

    def watch() -> None:
        main.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
