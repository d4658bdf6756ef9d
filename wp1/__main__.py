"""python -m wp1"""

import sys

# Engine processes are spawned, which imports this module again under another name.
if __name__ == "__main__":
    try:
        from wp1.main import main
    except KeyboardInterrupt:  # while it was importing
        sys.exit(130)
    main()
