"""Stands for a fault in a parser: a worker that is handed a dump of this kind runs the code in it.

Python imports this module at its start where its folder is in PYTHONPATH. Nothing else of the worker is touched: the
daemon has started it as it does any, and it has given everything up before it sees the dump.
"""

import sys

MARK = b"#takeover\n"

if "kvmd.worker" in sys.orig_argv:
    import json
    import os

    from kvmd.errors import Reason, error
    from kvmd.images import registry

    honest = registry.open_image

    def taken_over(files):
        core = -1 if files.core is None else files.core.fd
        code = b"" if core < 0 else os.pread(core, 1 << 20, 0)
        if not code.startswith(MARK):
            return honest(files)
        names = {"core": core, "free": int(sys.argv[1]), "answers": [], "files": files}
        exec(code, names)
        answers = json.dumps([each if isinstance(each, str) else 0 for each in names["answers"]], separators=(",", ":"))
        # An error of a worker's is cut to 1024 characters, and so is each of up to 16 words that go with it.
        parts = [answers[at : at + 1000] for at in range(0, len(answers), 1000)]
        words = {f"part{number:02}": part for number, part in enumerate(parts)}
        raise error(Reason.CORRUPT_IMAGE, "taken over", **words)

    registry.open_image = taken_over
