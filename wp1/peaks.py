"""python -m wp1.peaks: measures once what this machine's device can do at most, and keeps it for later runs.

FLOP/s are those of the fastest of a few square matrix products in BF16; bytes/s those of the faster of a copy (bytes
read and written) and a dot product (bytes read), over arrays that no cache holds. MFU and MBU are shares of these where
no table states them (`wp1.machine.stated_peaks`). It takes a few seconds, wants the machine to itself, and starts no
engine. Measured again, the higher figures are kept.
"""

import json
from dataclasses import asdict

from wp1.core import command
from wp1.core.errors import WP1Error
from wp1.machine import hardware
from wp1.machine.peaks import DTYPE, device_name, keep, measure
from wp1.machine.stated_peaks import stated


@command.guarded
def main() -> None:
    parser = command.Parser(prog="python -m wp1.peaks", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one line of JSON, for programs")
    as_json = parser.parse_args().json
    name = device_name(hardware.describe())
    try:
        found = keep(measure(name))
    except (ImportError, RuntimeError) as error:  # no torch, or no memory left on the device
        raise WP1Error(f"{name} could not be measured: {' '.join(str(error).split())[:200]}") from error
    if as_json:
        print(json.dumps(asdict(found)))
        return
    print(f"{name}: {found.flops / 1e12:,.2f} TFLOP/s in {DTYPE}, {found.bytes_per_s / 1e9:,.1f} GB/s")
    table = stated(name)
    if table is not None:
        print(
            f"stated: {table.flops / 1e12:,.2f} TFLOP/s, {table.bytes_per_s / 1e9:,.1f} GB/s ({table.source}); "
            "MFU and MBU are shares of these"
        )


if __name__ == "__main__":
    main()
