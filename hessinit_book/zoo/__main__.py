"""`python -m hessinit_book.zoo`."""

from hessinit_book.zoo.run import main

if __name__ == "__main__":
    main()
