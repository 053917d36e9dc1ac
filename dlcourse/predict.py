"""Ask a trained model about new images: `python -m dlcourse.predict RUN IMAGE ...`."""

from dlcourse.capstone.predict import Answer, Classifier, main

__all__ = ["Answer", "Classifier", "main"]

if __name__ == "__main__":
    raise SystemExit(main())
