//! JOSE: compact JWS, algorithms, key sets.
