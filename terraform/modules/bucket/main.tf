# Private: without an ACL, only the project's own members reach it.  Never force_destroy: it holds everybody's work.
resource "openstack_objectstorage_container_v1" "artifacts" {
  count      = var.manage ? 1 : 0
  name       = var.name
  versioning = var.versioning

  lifecycle {
    prevent_destroy = true
    # Where the store can't keep versions, it says so only by not doing it: no reason for a change at every run.
    ignore_changes = [versioning]
  }
}
