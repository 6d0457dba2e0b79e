"""The front door of HNS documents (HCN v2, and v1 where it still arrives)."""
