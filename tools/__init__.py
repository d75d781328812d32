"""What keeps the repository: prose and cards made from the record. No part of the library."""
