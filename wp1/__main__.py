"""python -m wp1"""

from wp1.main import main

# Engine processes are spawned, which imports this module again under another name.
if __name__ == "__main__":
    main()
