"""python -m vqcomp"""

from .cli import main

if __name__ == "__main__":
    main()
